from django.db import migrations

from recovery import roles


def grant(apps, schema_editor):
    roles.grant(apps, schema_editor, {roles.VIEWER: roles.viewing(apps, "recovery")})


class Migration(migrations.Migration):

    dependencies = [
        ('recovery', '0007_audit_trail'),
        ('auth', '0012_alter_user_first_name_max_length'),
        ('contenttypes', '0002_remove_content_type_name'),
    ]

    operations = [
        migrations.RunPython(grant, migrations.RunPython.noop, elidable=False),
    ]
