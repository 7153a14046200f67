# SPDX-License-Identifier: Apache-2.0
"""Measurements; nothing here is a test, and no test asserts a time."""
