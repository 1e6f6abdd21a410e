"""Write the reference pages that are generated from the code, and the outputs of the notebook: `make docs`."""

from __future__ import annotations

from tests.docs import MADE
from tests.docs.notebook import NOTEBOOK, executed, written


def main() -> None:
    for page, make in MADE.items():
        page.write_text(make())
    NOTEBOOK.write_text(written(executed(NOTEBOOK)), encoding="utf-8")


if __name__ == "__main__":
    main()
