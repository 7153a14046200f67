# SPDX-License-Identifier: Apache-2.0
"""kmesh-daemon: the dual-engine launcher."""
