"""Makes the two CSV files beside it, the same bytes every time: ``python make_bike_counts.py [FOLDER]``.

Four weeks of hourly counts by three bike counters of a town that does not exist, with five events for the quickstart to
find, and with the dirt that real files have. Only ``random()`` and ``gauss()`` of a seeded generator are used.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

HEADER = ["time", "counter", "bikes", "temperature"]
COUNTERS = {"Harbour Bridge": 1.0, "River Path": 0.55, "Station Square": 0.8}
WORKDAY = [3, 2, 1, 1, 2, 11, 48, 145, 188, 84, 52, 55, 66, 61, 58, 78, 132, 174, 121, 70, 45, 30, 18, 8]
WEEKEND = [9, 6, 4, 2, 1, 3, 8, 18, 38, 68, 98, 118, 121, 128, 132, 126, 108, 88, 64, 46, 34, 26, 19, 13]
START, DAYS = datetime.fromisoformat("2025-05-05T00:00"), 28

Row = list[str]


def event(counter: str, time: datetime) -> float:
    """How many times the usual number of bikes ride past at that hour."""
    day, hour = time.day, time.hour
    if day == 13 and 14 <= hour < 20:
        return 0.08  # a thunderstorm over the whole town
    if counter == "River Path" and day == 18 and 10 <= hour < 17:
        return 3.6  # a bike festival
    if counter == "Harbour Bridge" and day == 22 and 6 <= hour < 20:
        return 1.9  # no trams today
    if counter == "Station Square" and "2025-05-24T09" <= time.isoformat() < "2025-05-25T21":
        return 0.0  # a market stall parks on the sensor
    return 1.0


def readings(random: Random) -> Iterable[tuple[datetime, str, int, float]]:
    for day in range(DAYS):
        midnight = START + timedelta(days=day)
        usual = WEEKEND if midnight.weekday() >= 5 else WORKDAY
        warmth, mood = 13 + 0.2 * day + random.gauss(0, 2), random.gauss(1, 0.06)
        for hour in range(24):
            time = midnight + timedelta(hours=hour)
            temperature = warmth - 5 * math.cos((hour - 3) * math.pi / 12) + random.gauss(0, 0.3)
            for counter, size in COUNTERS.items():
                mean = usual[hour] * size * mood * (1 + (temperature - 15) * 0.012) * event(counter, time)
                yield time, counter, max(0, round(random.gauss(mean, math.sqrt(mean)))), temperature


def written(random: Random, time: datetime, counter: str, bikes: int, temperature: float) -> Row:
    """A reading as this counter writes it, for better or for worse."""
    row = [time.isoformat(timespec="minutes"), counter, str(bikes), f"{temperature:.1f} C"]
    if counter == "River Path" and 12 <= time.day < 19:
        row[0] = time.strftime("%d.%m.%Y %H:%M")  # somebody opened that week in a spreadsheet
    if counter == "Harbour Bridge" and time.day >= 20:
        row[3] = f"{temperature * 9 / 5 + 32:.1f} F"  # new firmware
    if counter == "Station Square" and random.random() < 0.2:
        row[3] = row[3].replace(".", ",")
    dice = random.random()
    if dice < 0.010:
        row[2] = ["", "n/a", "-"][int(random.random() * 3)]
    elif dice < 0.016:
        row[2] = ["9999", "65535", "-1"][int(random.random() * 3)]
    elif dice < 0.022:
        row[0] = ["", "1970-01-01T00:00", "2025-05-32T25:00"][int(random.random() * 3)]
    elif dice < 0.032:
        row[1] = [f" {counter}", counter.upper(), counter.replace(" ", "  ")][int(random.random() * 3)]
    elif dice < 0.040:
        row[3] = ""
    elif dice < 0.043:
        row[3] = "199.9 C"
    elif dice < 0.046:
        row[1] = "TEST"
    return row


def bike_counts() -> Iterable[Row]:
    random = Random(20250505)
    for reading in readings(random):
        row = written(random, *reading)
        yield row
        dice = random.random()
        if dice < 0.012:
            yield row  # sent twice
        elif dice < 0.015:
            yield [row[0], row[1], str(reading[2] + 7), row[3]]  # counted twice, differently


def upload() -> Iterable[Row]:
    """Two days by hand; after the first few rows the columns have slipped."""
    random = Random(20250602)
    for hour in range(48):
        time = (START + timedelta(days=DAYS, hours=hour)).isoformat(timespec="minutes")
        bikes, temperature = str(round(WORKDAY[hour % 24] * random.gauss(1, 0.1))), "17.0 C"
        yield [time, "River Path", bikes, temperature] if hour < 8 else ["River Path", time, temperature, bikes]


def main(folder: Path) -> None:
    for name, rows in (("bike_counts.csv", bike_counts()), ("upload.csv", upload())):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
