"""Write the stored reports of all shipped scenarios, and the sample trace: `make reports`."""

from __future__ import annotations

from sim.scenario.shipped import scenarios
from tests.reports import FOLDER, SAMPLE, run, stored, write_sample


def main() -> None:
    wanted = {FOLDER / f"{name}.json": path for name, path in scenarios().items()}
    for old in set(FOLDER.glob("*.json")) - set(wanted):
        old.unlink()
    for report, path in wanted.items():
        report.write_text(stored(run(path.stem)))
    write_sample(SAMPLE)


if __name__ == "__main__":
    main()
