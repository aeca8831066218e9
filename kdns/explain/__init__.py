"""Why a name resolves or doesn't: what a pod's resolver would ask, who answers, from which object, and what is amiss.

`explanation` puts it together; what it needs to know is a `World`, of a running server or of one that was never
started. It opens no socket and reads no file of its own.
"""
