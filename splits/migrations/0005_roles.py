from django.db import migrations

from recovery import roles

VERBS = ("recover", "retry", "release", "cancel", "reverse")


def grant(apps, schema_editor):
    roles.grant(
        apps,
        schema_editor,
        {
            roles.VIEWER: roles.viewing(apps, "splits"),
            roles.OPERATOR: [f"splits.{verb}_splitorder" for verb in VERBS],
        },
    )


class Migration(migrations.Migration):

    dependencies = [
        ('splits', '0004_plans'),
        ('recovery', '0006_roles'),
    ]

    operations = [
        migrations.RunPython(grant, migrations.RunPython.noop, elidable=False),
    ]
