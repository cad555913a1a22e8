#!/usr/bin/env bash
# Starts a SLURM cluster of four virtual nodes on this machine, from Debian's packages (apt-get install slurm-wlm munge), as root:
#
#     eval "$(tests/slurm/start_cluster.sh /tmp/slurm)" && python -m pytest tests/slurm
#
# Prints the line that sets SLURM_CONF. `tests/slurm/start_cluster.sh --stop /tmp/slurm` ends the processes it started.
set -euo pipefail

if [ "$1" = --stop ]; then
    for pid in "$2"/*.pid; do kill "$(cat "$pid")" 2> /dev/null || true; done
    exit 0
fi

root=$(realpath -m "$1")
mkdir -p "$root"/{state,spool,log}
cat > "$root/slurm.conf" <<CONF
ClusterName=u2seg
SlurmctldHost=$(hostname)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
JobRequeue=1
NodeName=v[1-4] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[17001-17004] CPUs=4 State=UNKNOWN
PartitionName=main Nodes=v[1-4] Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$root/slurm.conf
if ! munge -n > /dev/null 2>&1; then
    mkdir -p /run/munge && chown munge: /run/munge
    runuser -u munge -- munged
fi
slurmctld -f "$SLURM_CONF"
for node in v1 v2 v3 v4; do slurmd -f "$SLURM_CONF" -N $node; done
for _ in $(seq 50); do
    [ "$(sinfo --noheader --states=idle --format=%D 2> /dev/null)" = 4 ] && break
    sleep 0.2
done
sinfo >&2
echo "export SLURM_CONF=$SLURM_CONF"
