# SPDX-License-Identifier: Apache-2.0
"""Runs mutmut over groups of modules, one after the other, and writes down who survived.

mutmut mutates what stands in functions, imports the tests once, and forks a process for each mutant that runs the tests
which have called the function, the quickest first, until one fails. It wants a project of its own layout, so each group
gets a folder with a copy of sources and tests. cosmic-ray would start pytest anew for each mutant, with all tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.modules import ROOT, Group, UnknownModuleError, chosen

WORK = ROOT / "build" / "mutants"
SURVIVED, KILLED, UNTESTED, TIMEOUT = 0, 1, 33, 36
OUTCOMES = {SURVIVED: "survived", KILLED: "killed", 3: "killed", UNTESTED: "no test calls it", TIMEOUT: "killed (time)"}
"""mutmut's exit status of a mutant. Whatever else there is, a signal say, is a death too."""
TOLD_EVERY = 10.0
"""Seconds between two lines of progress."""
PROGRESS = re.compile(r"(\d+)/(\d+)  \D+(\d+)[^🙁]*🙁 (\d+)")
PROFILE = '''"""A mutant is to be found, not made small, and found again in the next run."""

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None)
settings.load_profile("mutants")
'''
SETTINGS = """
[tool.pytest.ini_options]
addopts = "-p no:cacheprovider --import-mode=importlib"
pythonpath = ["."]

[tool.mutmut]
source_paths = ["kmesh_bpf", "kmesh"]
only_mutate = {modules}
also_copy = ["conftest.py", "docs", "deploy", "bpf"]
pytest_add_cli_args_test_selection = {tests}
use_git_change_detection = false
"""


def main() -> int:
    """Run; give the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutants",
        description="Change the pure modules in one small way at a time, and see whether a test notices.",
        epilog=f"Survivors, as differences to the source: {WORK.relative_to(ROOT)}/results.txt. "
        "Exit status: 0: none; 1: some, or some that no test calls; 2: it could not be run.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as core.sas, secret (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="print the modules")
    flags = parser.parse_args()
    try:
        groups = chosen(flags.modules)
    except UnknownModuleError as error:
        parser.error(str(error))
    if flags.list:
        print("\n".join(name for group in groups for name in group.names()))
        return 0
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    results = [_run(group, max(1, flags.jobs)) for group in groups]
    return max(results)


def _run(group: Group, jobs: int) -> int:
    folder = WORK / group.package
    _lay_out(folder)
    print(f"{group.package}: {', '.join(group.modules)}; their tests run three times first", flush=True)
    _configure(folder, group, group.tests)
    whole = _mutmut(folder, jobs)
    found = _outcomes(folder, group)
    survivors = [name for name, code in found.items() if code in (SURVIVED, UNTESTED)]
    if whole and group.slow and survivors:
        print(f"{group.package}: {len(survivors)} survivors meet {', '.join(group.slow)}", flush=True)
        _configure(folder, group, (*group.tests, *group.slow))
        whole = _mutmut(folder, jobs, *survivors)
        again = _outcomes(folder, group)  # of the others mutmut has forgotten how they ended
        found |= {name: again[name] for name in survivors if again[name] is not None}
    return _sum_up(group, folder, found) if whole else 2


def _mutmut(folder: Path, jobs: int, *names: str) -> bool:
    """Run mutmut; tell whether it came to an end, if only because somebody stopped it."""
    log = folder / "mutmut.log"
    with log.open("wb") as out:
        command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(jobs), *names]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            _tell(process, log)
        except KeyboardInterrupt:
            process.wait()
            print("stopped; what is known so far:")
            return True
    if process.returncode:
        print(f"mutmut has failed, status {process.returncode}; the end of {log.relative_to(ROOT)}:")
        print(_text(log)[-3000:])
    return not process.returncode


def _lay_out(folder: Path) -> None:
    """Copy what mutmut works on; the packages lie side by side, as it takes a module's name from its path."""
    leave_out = shutil.ignore_patterns("__pycache__", "corpus")
    for source, target in (("kmesh_bpf", "kmesh_bpf"), ("python/kmesh", "kmesh"), ("tests", "tests"), ("docs", "docs")):
        shutil.copytree(ROOT / source, folder / target, ignore=leave_out)
    for source in ("deploy", "bpf"):
        shutil.copytree(ROOT / source, folder / source, ignore=leave_out)
    (folder / "conftest.py").write_text(PROFILE)


def _configure(folder: Path, group: Group, tests: Iterable[str]) -> None:
    modules = [f"{name.replace('.', '/')}.py" for name in group.names()]
    paths = [f"tests/unit/{path}" for path in tests]
    (folder / "pyproject.toml").write_text(SETTINGS.format(modules=json.dumps(modules), tests=json.dumps(paths)))


def _tell(process: subprocess.Popen[bytes], log: Path) -> None:
    told = ""
    while process.poll() is None:
        time.sleep(1.0 if not told else TOLD_EVERY)
        last = _text(log)[-400:]
        found = PROGRESS.findall(last)
        line = "{} of {} mutants; {} killed, {} survived".format(*found[-1]) if found else last.split("\n")[-1].strip()
        if line and line != told:
            told = line
            print(f"  {time.strftime('%H:%M:%S')} {line}", flush=True)


def _text(log: Path) -> str:
    return log.read_text(errors="replace").replace("\r", "\n").rstrip()


def _outcomes(folder: Path, group: Group) -> dict[str, int | None]:
    """Give each mutant, and how it ended: mutmut's exit status, None: not tried."""
    found: dict[str, int | None] = {}
    for module in group.names():
        meta = folder / "mutants" / f"{module.replace('.', '/')}.py.meta"
        if meta.exists():
            found |= json.loads(meta.read_text())["exit_code_by_key"]
    return found


def _sum_up(group: Group, folder: Path, found: dict[str, int | None]) -> int:
    """Print a line for each module, and append who survived to the results."""
    status = 0
    with (WORK / "results.txt").open("a") as results:
        for module in group.names():
            mine = {name: code for name, code in found.items() if name.rpartition(".")[0] == module}
            counts = Counter(_outcome(code) for code in mine.values())
            line = (
                f"{module}: {', '.join(f'{number} {name}' for name, number in sorted(counts.items())) or 'no mutants'}"
            )
            print(line, flush=True)
            results.write(f"{line}\n")
            for name, code in mine.items():
                if code in (SURVIVED, UNTESTED):
                    status = 1
                    results.write(f"\n--- {name}: {OUTCOMES[code]}\n{_difference(folder, name)}\n")
            results.flush()
    return status


def _outcome(code: int | None) -> str:
    return "not tried" if code is None else OUTCOMES.get(code, "killed")


def _difference(folder: Path, name: str) -> str:
    command = [Path(sys.executable).with_name("mutmut"), "show", name]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    return "\n".join(line for line in shown.splitlines() if line[:1] in "+-@" and line[:3] not in ("+++", "---"))


if __name__ == "__main__":
    sys.exit(main())
