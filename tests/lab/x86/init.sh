#!/bin/sh
# The guest's /init with Debian's kernel: loads the drivers, then does what the other lab's guest does, or what Debian's programs are for.
export PATH=/bin
mount -t proc proc /proc
modprobe evdev
read -r line </proc/cmdline
case $line in *also=vga*) modprobe bochs ;; esac  # as a distribution's guest does, before its display is attached
modprobe drm_xen_front
for part in $line; do
    case $part in
        also=input)  # beside the rest
            mount -t devtmpfs d /dev
            mount -t sysfs s /sys
            ls -l /sys/class/drm/card?/device/driver >/dev/hvc0
            (exec >/dev/hvc0; until events print; do :; done) & ;;
        guest=debian) exec /debian ;;
    esac
done
exec /work
