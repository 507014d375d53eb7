"""A real SLURM of one node: workers whose jobs are killed are replaced, and the tasks of an array share a folder.

Opt in by `make slurm` or `pytest -m slurm`. The daemons are this test's own, with their own key, ports and folders, run
by whoever runs the test: on Debian and Ubuntu they come with `apt install --no-install-recommends slurm-wlm munge`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gradspec.runs import Store

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # daemons are not on every user's
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)  # a process that ended by now, or is another user's

CONF = """\
ClusterName=gradspec
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
PlugStackConfig=/dev/null
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8192 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Waits for a condition and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return found


@contextmanager
def running(
    command: list[str], env: dict[str, str], folder: Path, log: Path, stop: signal.Signals = signal.SIGTERM
) -> Iterator[Any]:
    """A process of this test's own, that is stopped at the end, or when pytest itself is killed."""
    if shutil.which("setpriv", path=PATH):
        command = ["setpriv", "--pdeathsig", stop.name, *command]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        try:
            if process.poll() is None:
                process.send_signal(stop)
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Slurm:
    """The one-node cluster in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SCANCEL", "SQUEUE"))}
        mine = {
            "PATH": PATH,
            "SLURM_CONF": str(self.conf),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),  # jobs get it, too
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "DASK_TEMPORARY_DIRECTORY": str(folder / "scratch"),
        }
        self.env = {**outer, **mine}

    @contextmanager
    def up(self) -> Iterator[Slurm]:
        """Writes the configuration and runs the daemons."""
        self._configure()
        munge = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid"}
        files = [f"--{name}={self.folder / file}" for name, file in {**munge, "seed-file": "munged.seed"}.items()]
        # forced: the socket's folder is closed to other users, of which munge warns
        commands = [["munged", "--foreground", "--force", *files], ["slurmctld", "-D"], ["slurmd", "-D"]]
        ready = [
            lambda: (self.folder / "munge.socket").exists(),
            lambda: self.ask("scontrol", "ping", check=False).rstrip().endswith("UP"),
            lambda: self.ask("sinfo", "-h", "-o", "%T", check=False).strip() == "idle",
        ]
        try:
            with ExitStack() as stack:
                for command, is_ready in zip(commands, ready, strict=True):
                    log = self.folder / f"{command[0]}.out"
                    process = stack.enter_context(running(command, self.env, self.folder, log))
                    try:
                        until(lambda p=process, r=is_ready: p.poll() is not None or r(), command[0], 30)
                    except TimeoutError:
                        process.terminate()
                        process.wait(20)
                    if process.poll() is not None:
                        no_daemon(command[0], log.read_text(errors="replace"))
                yield self
                self.ask("scancel", "--user", _user(), check=False)
                until(lambda: not self.jobs(), "the jobs to end", 30)
        finally:
            for pid in self.processes():  # what a daemon or a job left
                with suppress(*GONE):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not self.processes(), "the last processes to end", 10)

    def _configure(self) -> None:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            ports = {"controller": one.getsockname()[1], "node": other.getsockname()[1]}
        host = socket.gethostname().partition(".")[0]
        self.conf.write_text(CONF.format(host=host, user=_user(), folder=self.folder, **ports))
        # devices that every machine has stand for GPUs: SLURM hands them out and counts them
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        if _version() >= (24, 5):  # where it is known: else slurmd wants a cgroup of its own
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        for name in ("state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)

    def ask(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Runs a command of SLURM and returns what it said."""
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def jobs(self) -> list[str]:
        """The jobs, and tasks of arrays, that wait or run."""
        return self.ask("squeue", "-h", "-r", "-o", "%i").split()

    def state(self, job: str) -> list[str]:
        """The states of a job, or of an array's tasks: COMPLETED, FAILED, CANCELLED, ..."""
        return re.findall(r"JobState=(\w+)", self.ask("scontrol", "show", "job", "-o", job))

    def processes(self) -> list[int]:
        """Whatever runs with this cluster's configuration: its daemons, their steps, its jobs."""
        found, mark = [], f"SLURM_CONF={self.conf}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(*GONE):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _version() -> tuple[int, ...]:
    said = subprocess.run(["slurmd", "-V"], env={"PATH": PATH}, capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:2])


def no_daemon(name: str, log: str) -> None:
    """Skips where daemons may not be started; fails where one did not come up for another reason."""
    said = [line for line in log.splitlines() if re.search("error|fatal", line, re.IGNORECASE)] or log.splitlines()
    if re.search("permission denied|not permitted", log, re.IGNORECASE):
        pytest.skip(f"{name} may not be started here: {said[-1]}")
    pytest.fail(f"{name} did not come up:\n" + "\n".join(said[-12:]))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if missing := [name for name in TOOLS if not shutil.which(name, path=PATH)]:
        pytest.skip(f"SLURM is not on this machine (no {', '.join(missing)}): apt install slurm-wlm munge")
    with Slurm(tmp_path_factory.mktemp("slurm")).up() as cluster:
        yield cluster


# ---- workers in jobs of their own --------------------------------------------------------------------

WORKERS = """
import signal

import dask
from dask_jobqueue import SLURMCluster

dask.config.set({
    "distributed.scheduler.unknown-task-duration": "1h",  # a job per unit from the start, up to the maximum
    "distributed.scheduler.worker-saturation": 1.0,       # a job holds the unit that it does, and no second
    "distributed.scheduler.worker-ttl": None,             # a busy worker is not a dead one
})

if __name__ == "__main__":
    with SLURMCluster(
        queue="gpu", job_extra_directives=["--gres=gpu:1"], cores=1, processes=1, job_cpu=1,
        memory="4GB", walltime="00:10:00", interface="lo", log_directory="logs",
        scheduler_options={"scheduler_file": "scheduler.json", "dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        cluster.adapt(maximum_jobs=2)
        try:
            signal.pause()  # until Ctrl-C, which ends the jobs as well
        except KeyboardInterrupt:
            pass
"""

UNITS = '''
import json, os, time
from pathlib import Path

import pandas as pd


def square(k, folder, hangs):
    """k squared; notes who began it; one that hangs does so until it is killed, the first time."""
    marked = Path(folder) / f"began-{k}"
    first = not marked.exists()
    marked.touch()
    about = {"unit": k, "job": os.environ["SLURM_JOB_ID"], "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
             "pids": [os.getppid(), os.getpid()]}  # the nanny, which would start another worker in the job, first
    with open(Path(folder) / "starts", "a") as file:
        file.write(json.dumps(about) + "\\n")
    time.sleep(600 if hangs and first else 0.2)
    return pd.DataFrame({"k": [k], "square": [k * k]})
'''

DRIVER = """
import json, sys
from functools import partial

from gradspec.runs import Store, Unit, run
from gradspec_test_units import square

if __name__ == "__main__":
    folder, count, hanging = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    units = [Unit(f"square of {k}", partial(square, k, folder, k in hanging)) for k in range(count)]
    failed = run(units, Store.open(folder + "/run", {}), scheduler=folder + "/scheduler.json", threads=1)
    sys.exit(len(failed))
"""


def test_a_killed_job_is_replaced_and_its_unit_done_by_another(slurm, tmp_path):
    """Two jobs hang in a unit each: of one the processes are killed, as for want of memory; the other is cancelled."""
    if missing := [name for name in ("distributed", "dask_jobqueue") if not importlib.util.find_spec(name)]:
        pytest.skip(f"workers in SLURM jobs need {' and '.join(missing)}: pip install 'gradspec[dev]'")
    (slurm.folder / "gradspec_test_units.py").write_text(UNITS)
    (tmp_path / "workers.py").write_text(WORKERS)
    (tmp_path / "driver.py").write_text(DRIVER)

    def starts() -> list[dict[str, Any]]:
        file = tmp_path / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    count, hanging, logs = 12, [0, 1], {name: tmp_path / f"{name}.out" for name in ("workers", "driver")}
    workers = running([sys.executable, "workers.py"], slurm.env, tmp_path, logs["workers"], stop=signal.SIGINT)
    command = [sys.executable, "driver.py", str(tmp_path), str(count), json.dumps(hanging)]
    with workers as keeper:
        until(lambda: (tmp_path / "scheduler.json").exists(), "the scheduler")
        with running(command, slurm.env, tmp_path, logs["driver"]) as driver:
            until(lambda: len(starts()) == 2, "two units in two jobs")
            one, other = starts()
            for pid in one["pids"]:
                os.kill(pid, signal.SIGKILL)
            until(lambda: len({start["job"] for start in starts()}) == 3, "a job in place of the killed one")
            slurm.ask("scancel", other["job"])
            assert driver.wait(240) == 0, logs["driver"].read_text()
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(30) == 0, logs["workers"].read_text()
    until(lambda: not slurm.jobs(), "the workers' jobs to end with their cluster", 30)

    store = Store(tmp_path / "run")
    assert [store.read(f"square of {k}")["square"][0] for k in range(count)] == [k * k for k in range(count)]
    assert len(list((tmp_path / "run" / "units").iterdir())) == count  # none twice, and nothing hidden is left
    assert not any((tmp_path / "run").glob("errors/*"))
    assert Counter(start["unit"] for start in starts()) == {k: 1 + (k in hanging) for k in range(count)}
    assert {one["unit"], other["unit"]} == set(hanging)
    assert one["job"] != other["job"] and {one["gpu"], other["gpu"]} == {"0", "1"}  # a GPU of its own each
    later = {start["job"] for start in starts()[2:]}
    assert later and min(map(int, later)) > max(int(one["job"]), int(other["job"]))  # new jobs, not the old ones
    assert slurm.state(one["job"]) == ["FAILED"] and slurm.state(other["job"]) == ["CANCELLED"]


# ---- job arrays --------------------------------------------------------------------------------------

ARRAY = """\
#!/bin/bash
#SBATCH --array=0-1 --partition=gpu --gres=gpu:1 --cpus-per-task=1 --mem=4G --time=00:10:00
#SBATCH --output=array-%a.out
gradspec atlas {networks} --out atlas --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
"""

TABLE = """\
#!/bin/bash
#SBATCH --partition=gpu --cpus-per-task=1 --mem=4G --time=00:10:00 --output=table.out
gradspec atlas {networks} --out atlas
"""

NETWORKS = """
import os
from pathlib import Path

from torch import nn


def _net(name, *layers):
    with open(Path(__file__).parent / "loaded", "a") as file:
        file.write(f"{name} {os.environ.get('SLURM_ARRAY_TASK_ID', 'none')}\\n")
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def maximum():
    return _net("maximum", nn.ReLU(), nn.MaxPool2d(2))


def average():
    return _net("average", nn.ReLU(), nn.AvgPool2d(2))


def strided():
    return _net("strided", nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))
"""


def test_the_tasks_of_an_array_share_a_folder_and_give_the_serial_table(slurm, tmp_path):
    """`gradspec atlas --shard` in two tasks at a time, and a job after them that makes the table of their units."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gradspec").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gradspec "$@"\n')
    (tmp_path / "bin" / "gradspec").chmod(0o755)
    (tmp_path / "nets.py").write_text(NETWORKS)
    names = ["nets.py:maximum", "nets.py:average", "nets.py:strided"]
    options = ["--limit", "4", "--size", "32"]
    for name, script in {"array.sh": ARRAY, "table.sh": TABLE}.items():
        (tmp_path / name).write_text(script.format(networks=" ".join([*names, *options])))
    env = {**slurm.env, "PATH": os.pathsep.join([str(tmp_path / "bin"), PATH])}

    def submit(*arguments: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    array = submit("array.sh")
    table = submit(f"--dependency=afterany:{array}", "table.sh")
    until(lambda: not slurm.jobs(), "the array and the job after it", 300)
    said = "".join(path.read_text() for path in sorted(tmp_path.glob("*.out")))
    assert slurm.state(array) == ["COMPLETED", "COMPLETED"] and slurm.state(table) == ["COMPLETED"], said

    loaded = [line.split() for line in (tmp_path / "loaded").read_text().splitlines()]
    assert sorted(loaded) == [["average", "1"], ["maximum", "0"], ["strided", "0"]]  # once each, by its task
    command = [str(tmp_path / "bin" / "gradspec"), "atlas", *names, *options, "--out", "serial"]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    shared, serial = (pd.read_csv(tmp_path / folder / "atlas.csv") for folder in ("atlas", "serial"))
    assert set(serial["network"]) == set(names) and serial["slope_nyquist"].nunique() == 3
    pd.testing.assert_frame_equal(shared, serial, rtol=1e-6)
    specs = [{**Store(tmp_path / folder).spec, "created": ""} for folder in ("atlas", "serial")]
    assert specs[0] == specs[1]
