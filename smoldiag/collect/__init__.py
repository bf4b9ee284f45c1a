"""This host in, facts out: all the I/O is here. Carried to the hosts: standard library only, Python 3.10."""
