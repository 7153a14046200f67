"""Kmesh IPsec: an eBPF-integrated datapath library."""
