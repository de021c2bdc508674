#!/bin/bash
# A driver domain's /init.domd: runs what Dom0 writes to the node data/run ("NUMBER COMMAND"), one after the other. The output goes
# to the console, which Dom0 keeps, between lines that carry the number.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
mount -t proc proc /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev 2>/dev/null
mount -t tmpfs t /run; mount -t tmpfs t /tmp; mkdir -p /dev/shm; mount -t tmpfs s /dev/shm
mount -t debugfs d /sys/kernel/debug; mount -t configfs c /sys/kernel/config
exec </dev/null >/dev/hvc0 2>&1
ln -s /proc/self/fd /dev/fd
ulimit -c 0
stty -F /dev/hvc0 -opost 2>/dev/null
echo "domd: up"
number=0
while :; do
    read -r asked command <<<"$(xenstore-read data/run 2>/dev/null)"
    if [ -n "$asked" ] && [ "$asked" != "$number" ]; then
        number=$asked
        echo "domd: begin $number"
        bash -c "$command" </dev/null
        echo "domd: end $number $?"
    else
        sleep 0.2
    fi
done
