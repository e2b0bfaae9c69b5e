"""Where each address of the site leads."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    path("i18n/", include("django.conf.urls.i18n")),  # the switch of the language
    path("", include("splits.demo.urls")),  # none unless DEMO
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
