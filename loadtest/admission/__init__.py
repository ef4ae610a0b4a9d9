"""What admission promises, on sockets: `make prove-admission` runs all of it.

    python -m loadtest.admission [limits] [lost] [fairness] [overload] [returns]

`limits`    budget, requests/min and concurrent requests are never exceeded by one, however many ask wherever
`lost`      how far a budget is overrun by what a killed gateway had open; the one overrun there is
`fairness`  one tenant who asks for twenty times its share does not take the replicas from the others
`overload`  the more is offered, the more is refused; what is served is as much as before, and within its targets
`returns`   who is refused and comes back when told to gets in

Gateways, clients and Valkey are processes; the replicas are simulated, and slow enough that two cores are mostly idle
when the fleet is full: what is measured is who is admitted and when, not how fast this machine is.
"""
