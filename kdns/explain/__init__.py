"""Why a name resolves or doesn't: what a pod's resolver would ask, who answers, from which object, and what is amiss.

Opens no socket and reads no file of its own: what it needs to know is a `World`, of a running server or of one that was
never started. In the order in which a question meets them:

- `running`, `answering`: the admin socket of a server, and what it says there.
- `asking`, `stub`: the question, who asks, and the names that its resolver makes of one.
- `trace`: each of these run through the chains, observed.
- `knowledge`, `meaning`: the objects behind a name, and what its labels mean.
- `case`, `near`: all of that, what was probably meant, and what is near to it.
- `hints`, `service_hints`: what is amiss, a rule for each mistake.
- `explanation`: puts it together, as the data of `report`, which `text` draws for people.
"""
