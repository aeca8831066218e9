"""The chain: every directive that kdns has, in the order in which a query meets them.

The order is CoreDNS 1.14.7's, but for `cache`, which stands directly before `forward`: over names of the cluster it has
no work. A Corefile's own order means nothing.
"""

from kdns.chain import Plugin
from kdns.plugins.acl import Acl
from kdns.plugins.any import Any
from kdns.plugins.autopath import Autopath
from kdns.plugins.bind import Bind
from kdns.plugins.bufsize import Bufsize
from kdns.plugins.cache import Cache
from kdns.plugins.chaos import Chaos
from kdns.plugins.debug import Debug
from kdns.plugins.dns64 import Dns64
from kdns.plugins.errors import Errors
from kdns.plugins.forward import Forward
from kdns.plugins.header import Header
from kdns.plugins.health import Health
from kdns.plugins.hosts import Hosts
from kdns.plugins.kubernetes import Kubernetes
from kdns.plugins.loadbalance import Loadbalance
from kdns.plugins.local import Local
from kdns.plugins.log import Log
from kdns.plugins.loop import Loop
from kdns.plugins.minimal import Minimal
from kdns.plugins.multisocket import Multisocket
from kdns.plugins.nsid import Nsid
from kdns.plugins.pprof import Pprof
from kdns.plugins.prometheus import Prometheus
from kdns.plugins.ready import Ready
from kdns.plugins.reload import Reload
from kdns.plugins.rewrite import Rewrite
from kdns.plugins.root import Root
from kdns.plugins.search import Search
from kdns.plugins.template import Template
from kdns.plugins.trace import Trace
from kdns.plugins.whoami import Whoami

PLUGINS: tuple[type[Plugin], ...] = (
    Root,
    Multisocket,
    Reload,
    Nsid,
    Bufsize,
    Bind,
    Debug,
    Trace,
    Ready,
    Health,
    Pprof,
    Prometheus,
    Errors,
    Log,
    Local,
    Dns64,
    Any,
    Chaos,
    Loadbalance,
    Rewrite,
    Search,
    Autopath,
    Acl,
    Header,
    Minimal,
    Template,
    Hosts,
    Kubernetes,
    Loop,
    Cache,
    Forward,
    Whoami,
)
