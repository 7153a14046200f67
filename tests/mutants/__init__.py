# SPDX-License-Identifier: Apache-2.0
"""Mutation tests: by :mod:`mutmut`, over the pure modules. Hours of work, and no part of scripts/test."""
