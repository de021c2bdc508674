#!/bin/bash
# Dom0's /init.dom0 (kernel parameter init=): no systemd, just what Xen needs, then the remote end that serves the host.
export PATH=/usr/local/bin:/usr/lib/xen-4.20/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev 2>/dev/null
mount -t tmpfs t /run; mount -t tmpfs t /tmp; mkdir -p /dev/pts /dev/shm
mount -t devpts p /dev/pts; mount -t tmpfs s /dev/shm; mount -t debugfs d /sys/kernel/debug
exec </dev/hvc0 >/dev/hvc0 2>&1
mount -t xenfs x /proc/xen
ln -s /proc/self/fd /dev/fd; for n in stdin stdout stderr; do ln -s /proc/self/fd/$((i++)) /dev/$n; done
ulimit -c 0
mkdir -p /run/lock /run/xen /run/xenstored /var/lib/xenstored /var/log/xen /var/lib/xen
case " $(cat /proc/cmdline) " in                    # the one written in C, or the one written in OCaml
    *" lab.store=oxenstored "*) oxenstored --pid-file /run/xen/xenstored.pid;;
    *) xenstored --pid-file /run/xen/xenstored.pid;;
esac
sleep 0.5; xen-init-dom0
xenconsoled --log=all --log-dir=/var/log/xen        # a guest's console: /var/log/xen/guest-NAME.log
port=""                                             # vport0p1, vport1p1: the number follows from the other devices
for try in {1..50}; do
    for entry in /sys/class/virtio-ports/*; do
        [ "$(cat $entry/name 2>/dev/null)" = displbe.remote ] && port=/dev/${entry##*/} && break 2
    done
    sleep 0.2
done
export TERM=dumb
python3 -S -B /remote.py "$port"
sync; busybox poweroff -f
