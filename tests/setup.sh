#!/bin/sh
# Create .venv with displbe and everything that its tests need. On Debian, as root, install the missing packages.
set -eu

need=""
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need="$need python3-venv"
"$PYTHON" -c 'import ctypes; ctypes.CDLL("libatomic.so.1")' 2>/dev/null || need="$need libatomic1"
command -v cc >/dev/null || need="$need gcc libc6-dev"
[ -e /usr/include/xen/io/displif.h ] || need="$need libxen-dev"
command -v edid-decode >/dev/null || need="$need edid-decode"
# PyPI has evdev as source only, so pip compiles it.
"$PYTHON" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || need="$need python3-dev"
[ -e /usr/include/linux/limits.h ] || need="$need linux-libc-dev"
[ -d /usr/share/wayland-protocols ] || need="$need wayland-protocols"
command -v weston >/dev/null || need="$need weston"
# A compositor with virtual keyboards, and a program that types with one. Weston has none.
command -v sway >/dev/null || need="$need sway"
command -v wtype >/dev/null || need="$need wtype"
[ -e /usr/include/drm/drm_mode.h ] || [ -e /usr/include/libdrm/drm_mode.h ] || need="$need libdrm-dev"
command -v Xvfb >/dev/null || need="$need xvfb"
command -v systemd-analyze >/dev/null || need="$need systemd"
command -v groff >/dev/null || need="$need groff-base"
command -v seatd >/dev/null || need="$need seatd"
"$PYTHON" -c 'import ctypes; ctypes.CDLL("libseat.so.1")' 2>/dev/null || need="$need libseat1"
if [ -n "$need" ]; then
    echo "installing$need"
    log=$(mktemp)
    # shellcheck disable=SC2086
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $need; } >"$log" 2>&1 ||
        { cat "$log"; exit 1; }
fi

"$PYTHON" -m venv .venv
.venv/bin/python -m pip install -q --upgrade 'pip>=25.1'
.venv/bin/python -m pip install -q --group test --group check --group pack -e '.[headless,drm,wayland,x11,input,metrics,check]'
.venv/bin/displbe --version
touch .venv/ready
