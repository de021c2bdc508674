"""The hypervisor, as trio sees it: `port` says what it offers, the other modules do it over /dev/xen and XenStore."""
