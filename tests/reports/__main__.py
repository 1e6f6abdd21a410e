"""Write the stored numbers of all shipped scenarios, and the sample trace: `make reports`."""

from __future__ import annotations

import json

from sim.scenario.shipped import scenarios
from tests.reports import FOLDER, SAMPLE, differences, numbers, run, stored, write_sample


def main() -> None:
    for old in {path.stem for path in FOLDER.glob("*.json")} - set(scenarios()):
        (FOLDER / f"{old}.json").unlink()
    for name in scenarios():
        path, now = FOLDER / f"{name}.json", numbers(run(name))
        for line in differences(stored(name) if path.exists() else {}, now):
            print(f"{name}: {line}")
        path.write_text(json.dumps(now, indent=1) + "\n")
    write_sample(SAMPLE)


if __name__ == "__main__":
    main()
