"""
A shopping cart that is a component of the session.

Run it with C{twistd -ny examples/cart.py}; add a book by visiting
http://127.0.0.1:8080/?add=book . The cart is a plain dataclass; it is stored with
the session and survives a restart.
"""

import os
from dataclasses import dataclass, field

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from zope.interface import Attribute, Interface

from twsessions import SessionSite, registerComponent


class ICart(Interface):
    items = Attribute("names of what is in the cart, in the order it was added")


@dataclass
class Cart:
    items: list = field(default_factory=list)


registerComponent(Cart, ICart)


class Shop(Resource):
    isLeaf = True

    def render_GET(self, request):
        cart = request.getSession(ICart)
        for name in request.args.get(b"add", []):
            cart.items.append(name.decode("utf-8", "replace"))
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return ("in your cart: %s\n" % (", ".join(cart.items) or "nothing")).encode()


application = Application("cart")
site = SessionSite(Shop(), store="sqlite:///cart.db")
endpoint = serverFromString(reactor, f"tcp:{os.environ.get('PORT', 8080)}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
