# SPDX-License-Identifier: Apache-2.0
"""The kernel: the only place that talks to it, and the only place where an errno becomes an error of ours."""
