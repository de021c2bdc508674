#!/bin/sh
# Runs a compositor or an X server of Debian's, which draws a picture that the test knows; or a shell on the guest's console.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp XDG_RUNTIME_DIR=/run/desktop LIBSEAT_BACKEND=noop DISPLAY=:0
mkdir -m 700 $XDG_RUNTIME_DIR
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger
udevadm settle
case $1 in
    shell) exec sh ;;
    weston)
        weston --backend=drm --renderer=pixman --continue-without-input --config=/desktop/weston.ini --log=/tmp/log & ;;
    xorg)
        mkdir /tmp/.X11-unix
        Xorg :0 -noreset -nolisten tcp -config /desktop/xorg.conf -logfile /tmp/log &
        until xsetroot -mod 16 8 -fg '#ff8000' -bg '#0040c0'; do sleep 0.5; done ;;
esac
server=$!
echo "guest: drawing"
wait $server
cat /tmp/log
echo "guest: done"
exec sleep 100000
