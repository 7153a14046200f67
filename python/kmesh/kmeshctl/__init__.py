# SPDX-License-Identifier: Apache-2.0
"""kmeshctl: the operator's tool."""
