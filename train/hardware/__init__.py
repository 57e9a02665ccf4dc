"""The hardware of this machine: its device, its memory, and the kernels that are selected for the device.

train/planning computes the resources that a run needs.
"""
