"""Tuning: measures what the analytic model only predicts, and keeps a record where it was wrong.

    tune     a network's kernels, those first that can still save most
      space      what may be tried: the tiles that strategies declare, in the order of their prediction
      evolution  the same in an order that MetaSchedule's evolutionary search finds out
      structure  into which kernels chains may be cut
      search     which of them are tried, and what is kept of them
      trial      builds some candidates of a kernel into one Program, and times and checks them there
      timing     where that runs: on this machine, on a board, or as an estimate for an emulated core
      intervals  what timings tell and what they do not
      budget     the time that is given, and what is kept of it for the play-off
  playoff    the kept ones against the default, each in the whole network
      sources    which code scheduled them: records hold for no other
  database   one folder for each device, in MetaSchedule's format with the evidence beside

Default, tuned and replayed kernels come the same way: a strategy schedules a workload with one of the tiles that it declares, and
a chain is cut into workloads that strategies compute.
"""
