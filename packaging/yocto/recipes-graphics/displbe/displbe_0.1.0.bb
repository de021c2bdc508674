SUMMARY = "Backend of Xen's paravirtual displays and input devices"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=4bab19453e27feda9d8ecc70421f6715"

# This recipe builds the tree that it lies in. Copied into another layer, EXTERNALSRC must say where the tree is; or SRC_URI takes the place of
# externalsrc, with the sdist that make wheel leaves in out/dist.
inherit externalsrc python_hatchling systemd useradd
EXTERNALSRC = "${@os.path.abspath(os.path.join(d.getVar('THISDIR'), '../../../..'))}"

# hatch_build.py makes the modules of the Wayland protocols from their XML, and with cffi those of the C functions from their declarations.
DEPENDS += "wayland-protocols pkgconfig-native python3-cffi-native"

RDEPENDS:${PN} = " \
    libatomic \
    python3-cffi \
    python3-core \
    python3-ctypes \
    python3-msgspec \
    python3-pyxs \
    python3-structlog \
    python3-trio \
"
RRECOMMENDS:${PN} = "python3-evdev python3-pillow python3-pyudev seatd kernel-module-xen-gntdev kernel-module-xen-evtchn"

SYSTEMD_SERVICE:${PN} = "displbe.service"
# Enabled, unlike in a distribution for everybody: who puts it into an image wants it there.
SYSTEMD_AUTO_ENABLE = "enable"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "-r displbe; -r displbe-xen; -r video; -r render; -r input"
USERADD_PARAM:${PN} = "-r -g displbe -d /nonexistent -M -s /sbin/nologin displbe"

do_install:append() {
    install -D -m 0644 ${S}/systemd/displbe.service ${D}${systemd_system_unitdir}/displbe.service
    install -D -m 0644 ${S}/systemd/displbe.sysusers ${D}${nonarch_libdir}/sysusers.d/displbe.conf
    install -D -m 0644 ${S}/systemd/displbe.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/displbe.conf
    install -D -m 0644 ${S}/systemd/60-displbe.rules ${D}${nonarch_base_libdir}/udev/rules.d/60-displbe.rules
    install -D -m 0644 ${S}/configs/displbe.toml ${D}${sysconfdir}/displbe/displbe.toml
    # `make man` has made them, if somebody asked it to: they come from the programs themselves, which bitbake's Python cannot run.
    for page in ${S}/out/man/*.[158]; do
        [ ! -e $page ] || install -D -m 0644 $page ${D}${mandir}/man${page##*.}/$(basename $page)
    done
}

FILES:${PN} += "${nonarch_libdir}/sysusers.d ${nonarch_libdir}/tmpfiles.d ${nonarch_base_libdir}/udev/rules.d"
CONFFILES:${PN} = "${sysconfdir}/displbe/displbe.toml"
