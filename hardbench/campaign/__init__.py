"""Campaigns: a grid of settings becomes cells, cells become jobs, executors run the jobs."""
