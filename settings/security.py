"""Who gets in, for how long, and what a browser may do with our pages."""

from datetime import timedelta
from typing import Any

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE

from settings.env import env

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]

LOGIN_FAILURE_LIMIT = env.integer("LOGIN_FAILURE_LIMIT", 5, low=1, high=1_000)
LOGIN_COOLOFF_SEC = env.integer("LOGIN_COOLOFF_SEC", 900, low=1, high=30 * 86_400)
PROXY_COUNT = env.integer("PROXY_COUNT", 0, low=0, high=10)

AXES_FAILURE_LIMIT = LOGIN_FAILURE_LIMIT
AXES_COOLOFF_TIME = timedelta(seconds=LOGIN_COOLOFF_SEC)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
# Or whoever goes on guessing would keep the owner of the name out for ever.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_CLIENT_IP_CALLABLE = "recovery.logins.client_address"
AXES_LOCKOUT_CALLABLE = "recovery.logins.locked_out"
AXES_ENABLE_ADMIN = False
AXES_DISABLE_ACCESS_LOG = True  # log lines say it, and need no retention of ours
AXES_VERBOSE = False

SESSION_MAX_SEC = env.integer("SESSION_MAX_SEC", 28_800, low=60, high=30 * 86_400)
SESSION_IDLE_SEC = env.integer("SESSION_IDLE_SEC", 3_600, low=60, high=30 * 86_400)
SESSION_COOKIE_AGE = SESSION_MAX_SEC
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"

X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"

CONTENT_SECURITY_POLICY: dict[str, Any] = {
    "DIRECTIVES": {
        "default-src": [NONE],
        # The skin's Alpine makes functions of the expressions in its attributes.
        "script-src": [SELF, UNSAFE_EVAL],
        # The skin writes its colours into a style element, and widths into attributes.
        "style-src": [SELF, UNSAFE_INLINE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
        "object-src": [NONE],
    }
}
