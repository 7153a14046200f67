# SPDX-License-Identifier: Apache-2.0
"""What the daemon tells of itself: one record of it, views of that, and the threads that serve and send them."""
