"""Where each address of the site leads."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    path("", include("splits.demo.urls")),  # none unless DEMO
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
