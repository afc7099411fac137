"""One report of the GPU kernels, in ten minutes: are they right, how fast are they, and how fast could they be?

``make gpu-report`` runs it from the source tree. Each part is a process of its own and has a limit of time. It writes
what it has as it comes: a part that hangs, crashes or is stopped takes nothing away from the others.
"""
