"""Write the reference pages that are generated from the code: `make docs`."""

from __future__ import annotations

from tests.docs import MADE


def main() -> None:
    for page, make in MADE.items():
        page.write_text(make())


if __name__ == "__main__":
    main()
