#!/bin/sh
# Keeps one private engine: starts the command it is given, and when stdin closes (the test is over, or was killed) kills it and
# removes every trace. Without a command it only removes what an earlier run left. Exits 1 if something could not be removed.
# BENCH_DIR is the engine's folder, BENCH_BRIDGE a bridge to remove, if the engine has one.
set -u
name=${BENCH_DIR##*/}

# Kills what runs in the engine's containers and build steps, found by their cgroups.
kill_containers() {
    processes=$(find /sys/fs/cgroup -path "*/$name/*" -name cgroup.procs -exec cat {} + 2>/dev/null)
    # shellcheck disable=SC2086
    [ -n "$processes" ] && kill -KILL $processes 2>/dev/null
    [ -n "$processes" ]
}

# Kills the engine's helpers, found by the folder on their command lines.
kill_helpers() {
    none=1
    set -- /proc/[0-9]*/cmdline
    # The pattern is not on grep's own command line.
    for found in $(printf '%s/' "$BENCH_DIR" | grep -lsFf - "$@"); do
        process=${found#/proc/}
        [ "${process%/cmdline}" = $$ ] && continue
        kill -KILL "${process%/cmdline}" 2>/dev/null && none=0
    done
    return $none
}

remove_all() {
    round=0
    while { kill_containers || kill_helpers; } && [ $round -lt 100 ]; do
        round=$((round + 1))
        sleep 0.05
    done
    awk -v dir="$BENCH_DIR/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
        umount -l "$mount"
    done
    find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
    # shellcheck disable=SC2153
    if [ -n "${BENCH_BRIDGE:-}" ] && [ -e "/sys/class/net/$BENCH_BRIDGE" ]; then
        ip link delete "$BENCH_BRIDGE"
    fi
    rm -rf --one-file-system "$BENCH_DIR"
    [ ! -e "$BENCH_DIR" ]
}

if [ $# -gt 0 ]; then
    echo $$ >"$BENCH_DIR/keeper.pid"
    "$@" >>"$BENCH_DIR/log" 2>&1 &
    engine=$!
    echo $engine >"$BENCH_DIR/engine.pid"
    while read -r _; do :; done
    # It has nothing to write down: what it holds goes with its folder. By itself it would take more than a second.
    kill -KILL $engine 2>/dev/null
fi
remove_all
