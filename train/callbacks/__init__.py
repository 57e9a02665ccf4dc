"""Callbacks that Composer lacks, one file each."""
