#!/bin/sh
# A guest that runs a program of Debian's from its disk, which is not changed: do=weston, do=xorg.
export PATH=/bin
mount -t sysfs s /sys
mount -t devtmpfs d /dev
exec </dev/hvc0 >/dev/hvc0 2>&1
echo "guest: up"
modprobe xen_blkfront
modprobe crc32c_generic
modprobe ext4
while [ ! -b /dev/xvda ] || [ ! -e /dev/dri/card0 ]; do usleep 100000; done
mount -t ext4 -o ro,noload /dev/xvda /disk
for folder in proc sys dev; do mount -o bind /$folder /disk/$folder; done
for folder in run tmp var/log var/lib; do mount -t tmpfs t /disk/$folder; done
read -r line </proc/cmdline
for part in $line; do case $part in do=*) todo=${part#do=} ;; esac; done
exec chroot /disk /bin/sh /desktop/run.sh "$todo"
