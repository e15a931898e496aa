"""Load generator: traces, open-loop replay against real sockets, reports and plots."""
