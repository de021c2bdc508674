SUMMARY = "XenStore client in Python"
HOMEPAGE = "https://github.com/selectel/pyxs"
LICENSE = "LGPL-3.0-only"
LIC_FILES_CHKSUM = "file://LICENSE;md5=e6a600fd5e1d9cbde2d983680233ad02"

SRC_URI[sha256sum] = "c56c88114651eda15f074d1b32fd465a5846d8e6e1f8aa296c7fd0292b7638ad"

inherit pypi setuptools3
