"""A real mail server, aiosmtpd, that prints what it takes: server.py MODE CERT KEY."""
import json
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, SMTP


class Print:
    async def handle_DATA(self, server, session, envelope):
        print(json.dumps({
            "from": envelope.mail_from, "to": envelope.rcpt_tos,
            "data": envelope.content.decode("utf-8"), "tls": session.ssl is not None or mode == "tls",
            "user": session.auth_data.login.decode() if session.auth_data else "", "helo": session.host_name,
        }), flush=True)
        return "250 taken"


def check(server, session, envelope, mechanism, data):
    ok = data.login == b"haven" and data.password == b"mail-secret-4c"
    return AuthResult(success=ok, handled=False, auth_data=data)


class Server(Controller):
    def factory(self):
        tls = {} if mode == "tls" else {"tls_context": context, "require_starttls": True}
        return SMTP(self.handler, authenticator=check, auth_required=True, auth_require_tls=mode != "tls",
                    auth_exclude_mechanism=["PLAIN"] if mode == "login" else [], **tls)


mode = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server = Server(Print(), hostname="127.0.0.1", port=int(sys.argv[4]), ssl_context=context if mode == "tls" else None)
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
