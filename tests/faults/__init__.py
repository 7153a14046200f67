# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: what every bad day costs, counted on real packets. ``scripts/faults`` runs it."""
