"""The demo's pages, which exist only where DEMO is set."""

from django.conf import settings
from django.urls import URLPattern, path
from django.views.generic import RedirectView

from splits.demo import views

urlpatterns: list[URLPattern] = []
if settings.DEMO:
    urlpatterns = [
        path("", RedirectView.as_view(pattern_name="demo")),
        path("demo/", views.guide, name="demo"),
        path("demo/live/", views.live, name="demo-live"),
    ]
