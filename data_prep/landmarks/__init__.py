"""Landmarks that were made elsewhere: tables of them, and looking photos up in one."""
