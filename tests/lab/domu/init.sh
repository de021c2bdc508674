#!/bin/sh
# The guest's /init: busybox, and what `guest=` on the kernel's command line says.
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
exec </dev/hvc0 >/dev/hvc0 2>&1                     # an initramfs has no /dev/console node: without this the log is empty
for part in $(cat /proc/cmdline); do
    case $part in guest=*) guest=${part#guest=};; mode=*) mode=${part#mode=};; seconds=*) seconds=${part#seconds=};; do=*) todo=${part#do=};; esac
done
mode=${mode:-1024x768}
echo "guest: up"
tries=0
while [ "$guest" != hostile ] && [ "$guest" != idle ] && [ "$guest" != input ] && [ "$guest" != flips ] && [ ! -e /dev/dri/card0 ] && [ $tries -lt 300 ]; do usleep 100000; tries=$((tries+1)); done
show() { (sleep "$1"; echo) | modetest -M xendrm-du -s "$2" $3; }
case $guest in
    still) echo "guest: drawing"; show ${seconds:-600} Virtual-1:$mode "" ;;
    draw) draw $mode ${seconds:-600} ${todo:-0} ;;  # without flipping
    survive) survive $mode ;;
    flip) echo "guest: flipping"; show ${seconds:-600} Virtual-1:$mode -v ;;
    twice)  # again when the card has gone and come back
        while :; do
            while ! ls /dev/dri/card* >/dev/null 2>&1; do usleep 200000; done
            # The new device's connector has another number when a program still held the old device.
            name=$(modetest -M xendrm-du -c 2>/dev/null | grep -o 'Virtual-[0-9]*' | head -n 1)
            echo "guest: drawing"; show ${seconds:-600} $name:$mode ""
        done ;;
    hostile)  # do=WHAT:NUMBER,WHAT:NUMBER…: in place of the kernel's own driver, which initcall_blacklist keeps away
        IFS=,
        for part in $todo; do hostile ${part%%:*} ${part#*:}; done ;;
    flips)  # do=ARGUMENT:ARGUMENT…: in place of the kernel's own driver, as above
        IFS=:
        flips $todo ;;
    input)  # do=print, do=sum, do=reboot: what programs read from the input devices
        how=print; [ "$todo" = sum ] && how=sum
        until events $how; do :; done  # again when a device has gone
        [ "$todo" = reboot ] && reboot -f ;;
    reboot) show 1 Virtual-1:$mode -v; echo "guest: rebooting"; reboot -f ;;
    poweroff) show 1 Virtual-1:$mode -v; echo "guest: powering off"; poweroff -f ;;
esac
echo "guest: done"
while :; do sleep 600; done
