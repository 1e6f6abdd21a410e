"""Run the whole suite, slow cases too."""

import sys
from pathlib import Path

import pytest

sys.exit(pytest.main([str(Path(__file__).parent), "-p", "no:cacheprovider", *sys.argv[1:]]))
