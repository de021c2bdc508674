#!/bin/sh
# Create .venv with displbe and everything that its tests need; `setup.sh demo`: only what the demonstration needs. On Debian, as root,
# install the missing packages.
set -eu

PYTHON=${PYTHON:-python3}
purpose=${1:-test}

need=""
# Whether the interpreter can do something.
python_can() { "$PYTHON" -c "$1" 2>/dev/null; }
has_library() { python_can "import ctypes; ctypes.CDLL('$1')"; }

# displbe itself. Its build generates modules from the XML of wayland-protocols.
python_can 'import ensurepip, venv' || need="$need python3-venv"
has_library libatomic.so.1 || need="$need libatomic1"
[ -d /usr/share/wayland-protocols ] || need="$need wayland-protocols"

if [ "$purpose" = test ]; then
    # The pump, vectors made from C headers, and evdev, of which PyPI has the source only.
    command -v cc >/dev/null || need="$need gcc libc6-dev"
    python_can 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' || need="$need python3-dev"
    [ -e /usr/include/linux/limits.h ] || need="$need linux-libc-dev"
    [ -e /usr/include/xen/io/displif.h ] || need="$need libxen-dev"
    [ -e /usr/include/drm/drm_mode.h ] || [ -e /usr/include/libdrm/drm_mode.h ] || need="$need libdrm-dev"

    # Compositors, an X server and a session manager as displbe's counterparts. Weston has no virtual keyboards; sway has, and wtype types.
    command -v weston >/dev/null || need="$need weston"
    command -v sway >/dev/null || need="$need sway"
    command -v wtype >/dev/null || need="$need wtype"
    command -v Xvfb >/dev/null || need="$need xvfb"
    command -v seatd >/dev/null || need="$need seatd"
    has_library libseat.so.1 || need="$need libseat1"

    # Programs that check what displbe makes: EDIDs, units, man pages.
    command -v edid-decode >/dev/null || need="$need edid-decode"
    command -v systemd-analyze >/dev/null || need="$need systemd"
    command -v groff >/dev/null || need="$need groff-base"
fi
if [ -n "$need" ]; then
    echo "installing$need"
    log=$(mktemp)
    # shellcheck disable=SC2086
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $need; } >"$log" 2>&1 ||
        { cat "$log"; exit 1; }
fi

"$PYTHON" -m venv .venv
if [ "$purpose" = test ]; then
    .venv/bin/python -m pip install -q --upgrade 'pip>=25.1'
    .venv/bin/python -m pip install -q --group test --group check --group pack -e '.[headless,drm,wayland,x11,input,metrics,check]'
else
    .venv/bin/python -m pip install -q -e '.[headless,wayland,x11]'
fi
.venv/bin/displbe --version
touch .venv/demo
[ "$purpose" = demo ] || touch .venv/ready
