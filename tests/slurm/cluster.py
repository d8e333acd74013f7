"""A SLURM of one node on this machine, for as long as a test needs it: munged, slurmctld and slurmd, without systemd.

No accounting database, as on many small clusters. Debian's packages slurmctld, slurmd, slurm-client and munge; root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "munge", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
GRACE_SECONDS = 2  # between the signal to a preempted job and its end
CPUS = 4  # that the node claims to have

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
MailProg=/bin/true
AuthType=auth/munge
# a requeued job waits until its old credential has expired: two minutes, unless one says so
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
# no cgroups: containers do not have them
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
LaunchParameters=disable_send_gids
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0,defer
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
KillWait=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
# a preempted job gets SIGTERM only, SLURM's default; its time limit is announced with USR2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL State=UP PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no cluster here; None where there can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {missing[0]}; apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Partition `low` is preempted by partition `high`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.env["PATH"] += ":/usr/sbin:/sbin"
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        key, munge = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        conf = CONF.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            port=_free_port(),
            node_port=_free_port(),
            cpus=CPUS,
            grace=GRACE_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        files = {name: f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")}
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files.values())
        self._until("munged", lambda: self.call("munge", "-n", "-S", str(munge)).returncode == 0)
        self._daemon("slurmctld", "-D")
        self._until("slurmctld", lambda: "is UP" in self.call("scontrol", "ping").stdout)
        self._daemon("slurmd", "-D", "-N", "n1")
        self._until("slurmd", lambda: "idle" in self.call("sinfo", "-h", "-p", "low", "-o", "%T").stdout)

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--me", "--signal=KILL", "--full")
        self.call("scancel", "--me")
        deadline = time.monotonic() + 20
        while self.call("squeue", "-h", "--me").stdout and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as out:
            self.daemons.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            )

    def _until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline or self.daemons[-1].poll() is not None:
                logs = "\n".join(file.read_text()[-2000:] for file in self.folder.glob(f"{name}.*") if file.is_file())
                raise RuntimeError(f"{name} did not start: {logs}")
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
