"""Processes that experiments share work out to. Nothing heavy is imported here: what a process imports, it holds."""

import concurrent.futures
import multiprocessing
import os

import torch


def workers(jobs):
    """A pool of processes that share the cores out evenly. The parent's memory and threads are not theirs."""
    return concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"),
                                                  torch.set_num_threads, (max(1, os.cpu_count() // jobs),))
