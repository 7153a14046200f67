# SPDX-License-Identifier: Apache-2.0
"""Which kernel this is: some of what others bring, and rows and tests with it, is not on all that the product runs on."""

import platform

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split("+")[0].split(".")[:2])
"""Series: (6, 12) say."""
TCX, NETKIT = (6, 6), (6, 7)
"""Since when the kernel has them."""
