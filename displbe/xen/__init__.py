"""The hypervisor, for trio: `port` has the interfaces, the other modules implement them over /dev/xen and XenStore."""
