from django.db import migrations

from recovery import roles

PEOPLE = [f"auth.{verb}_{kind}" for kind in ("user", "group") for verb in ("add", "change", "delete", "view")]


def grant(apps, schema_editor):
    roles.grant(
        apps,
        schema_editor,
        {
            roles.VIEWER: roles.viewing(apps, "recovery"),
            roles.OPERATOR: ["recovery.change_job"],
            roles.ADMINISTRATOR: [
                "recovery.view_stacktrace",
                "axes.view_accessattempt",
                "axes.delete_accessattempt",
                *PEOPLE,
            ],
        },
    )


class Migration(migrations.Migration):

    dependencies = [
        ('recovery', '0005_sample_moments'),
        ('auth', '0012_alter_user_first_name_max_length'),
        ('axes', '0010_accessattemptexpiration'),
        ('contenttypes', '0002_remove_content_type_name'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='jobrun',
            options={'ordering': ['-id'], 'permissions': [('view_stacktrace', 'Can see stack traces')], 'verbose_name': 'job run', 'verbose_name_plural': 'job runs'},
        ),
        migrations.RunPython(grant, migrations.RunPython.noop, elidable=False),
    ]
