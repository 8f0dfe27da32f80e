"""The chat box's CSS, with colours from the notebook's theme.

In a front end without JupyterLab's variables, text inherits its colour and bubbles are translucent,
so that they are readable on white and on black.
"""

STYLESHEET = """<style>
.mixoff-box { max-width: 1100px; column-gap: 16px; }
.mixoff-view { border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5));
  border-radius: 6px; padding: 6px; resize: vertical; overscroll-behavior: contain; }
.mixoff-log, .mixoff-live { flex: 0 0 auto; width: 100%; margin: 0; height: auto; }
.mixoff-log .widget-html-content, .mixoff-live .widget-html-content {
  display: flex; flex-direction: column; line-height: 1.45; }
.mixoff-user, .mixoff-reply, .mixoff-growing { box-sizing: border-box; max-width: 88%;
  margin: 4px 0; padding: 6px 10px; border-radius: 10px; overflow-wrap: anywhere;
  color: var(--jp-content-font-color1, inherit); unicode-bidi: isolate; }
.mixoff-user { align-self: flex-end; background: rgba(60,120,240,.2); white-space: pre-wrap; }
.mixoff-reply, .mixoff-growing { align-self: flex-start; background: rgba(128,128,128,.16); }
.mixoff-growing { white-space: pre-wrap; }
.mixoff-reply > :first-child { margin-top: 0; }
.mixoff-reply > :last-child { margin-bottom: 0; }
.mixoff-reply pre { overflow-x: auto; white-space: pre; padding: 6px; border-radius: 4px;
  background: rgba(128,128,128,.16); }
.mixoff-caret::after { content: "\\258D"; opacity: .6; }
.mixoff-forgotten { display: flex; flex-direction: column; opacity: .6; }
.mixoff-note, .mixoff-caption, .mixoff-status { font-size: 12px;
  color: var(--jp-content-font-color2, inherit); }
.mixoff-note { text-align: center; margin: 4px 0; }
.mixoff-status { line-height: 1.4; height: auto; overflow-wrap: anywhere; }
.mixoff-status .widget-html-content { line-height: 1.4; white-space: normal; }
.mixoff-table { border-collapse: collapse; font-size: 12px; line-height: 1.5;
  color: var(--jp-content-font-color1, inherit); }
.mixoff-table th, .mixoff-table td { padding: 0 8px; text-align: right; font-weight: normal;
  font-variant-numeric: tabular-nums; background: none; border: none; }
.mixoff-table th[scope=row] { text-align: left; padding-left: 0; }
.mixoff-layers { display: grid; gap: 2px; max-width: 420px;
  grid-template-columns: repeat(auto-fill, minmax(30px, 1fr)); }
.mixoff-layer { display: block; text-align: center; font-size: 11px; line-height: 20px;
  border-radius: 3px; background: rgba(128,128,128,.16); font-variant-numeric: tabular-nums; }
.mixoff-scale { display: inline-block; width: 120px; height: 8px; border-radius: 4px; }
</style>"""
